"""Implement the app: the work of each tab, and the page that shows it."""
