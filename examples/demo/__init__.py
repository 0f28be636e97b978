"""The app's parts: what each tab does, and the page that shows it."""
