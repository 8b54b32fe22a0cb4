"""Rendering of self-contained HTML pages."""

from pathlib import Path

import jinja2

from cmt_aqr.files import atomic_write


def write_page(path: Path, template: str, **variables: object) -> None:
    """Write a page atomically, from a template of this package with all variables that it uses."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cmt_aqr.studies", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with atomic_write(path) as partial:
        partial.write_text(environment.get_template(template).render(**variables), encoding="utf-8")
