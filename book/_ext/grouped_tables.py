"""Tables in groups: what the first column says of a group of rows becomes a line of its own above them.

In Markdown such a column is empty below its first entry. It costs the others room, most of all on a phone.
"""

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform


class GroupRows(SphinxPostTransform):
    """After the outputs of notebooks have become tables."""

    default_priority = 500

    def run(self, **options):
        for group in self.document.findall(nodes.tgroup):
            body = next(group.findall(nodes.tbody))
            if any(not row[0].astext() for row in body[1:]):
                set_apart(group, body)


def set_apart(group, body):
    """Move the first column of a table into lines across the others."""
    width = len(body[0]) - 1
    group.remove(next(group.findall(nodes.colspec)))
    group["cols"] = width
    for heading in group.findall(nodes.thead):
        for row in heading:
            row.pop(0)
    for row in list(body):
        name = row.pop(0)
        if name.astext():
            name["morecols"] = width - 1
            body.insert(body.index(row), nodes.row("", name, classes=["group"]))


def setup(app):
    app.add_post_transform(GroupRows)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
