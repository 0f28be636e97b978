"""Parse the app's answers for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Parse elements and text of HTML, and check that every element is closed."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(found == tag for found, _ in self.found)


def check_harmless(page):
    """Check that a text added no element or attribute."""
    parsed = Page(page)
    assert {tag for tag, _ in parsed.found} <= {
        *("p", "span", "div", "section", "h2", "h3", "ol", "li", "mark", "br", "button", "label", "meter", "output"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    }
    assert not any(name.startswith("on") or name in ("src", "href") for _, own in parsed.found for name in own)
    return parsed
