"""The app's parts: a model, the functions behind each tab, and the page that shows them."""
