"""What every HTML representation of an object must be, for the tests of each object."""

from xml.etree import ElementTree


def checked(html):
    """The texts of a well-formed representation, in order; it runs and loads nothing."""
    root = ElementTree.fromstring(html)  # strict: every element is closed, every `&` is escaped
    assert root.tag == "div"
    for element in root.iter():
        assert element.tag in {
            *("div", "style", "table", "thead", "tbody", "tr", "th", "td"),
        }, element.tag
        assert element.attrib.keys() <= {"class", "scope"}
    assert "url(" not in html and "@import" not in html
    return [e.text for e in root.iter() if e.tag != "style" and (e.text or "").strip()]


def cells(html):
    """Rows of the last table as lists of texts, the header first."""
    tables = list(ElementTree.fromstring(html).iter("table"))
    return [["".join(cell.itertext()) for cell in row] for row in tables[-1].iter("tr")]
