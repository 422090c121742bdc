"""The references are labelled as the text cites them, by authors and year."""

from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.labels import BaseLabelStyle


class AuthorYear(BaseLabelStyle):
    def format_labels(self, entries: Iterable[Entry]) -> Iterator[str]:
        for entry in entries:
            first, *others = ["".join(author.last_names) for author in entry.persons["author"]]
            names = {0: first, 1: f"{first} and {others[-1]}" if others else ""}.get(len(others), f"{first} et al.")
            yield f"{names}, {entry.fields['year']}"


class Style(Unsorted):
    default_label_style = AuthorYear
    default_sorting_style = "author_year_title"


register_plugin("pybtex.style.formatting", "author_year", Style)


def setup(app) -> None:
    """Nothing to connect: to be imported is enough."""
