"""Pages out of templates; a page needs nothing beside it."""

from pathlib import Path

import jinja2

from cmt_aqr.files import written_at_once


def write_page(path: Path, template: str, **parts: object) -> None:
    """Write a page of HTML, whole or not at all.

    Args:
        path: of the page.
        template: name of a file beside this one.
        **parts: what it shows, all that it names.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cmt_aqr.studies", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with written_at_once(path) as partial:
        partial.write_text(environment.get_template(template).render(**parts), encoding="utf-8")
