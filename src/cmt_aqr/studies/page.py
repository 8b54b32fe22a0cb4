"""Pages out of templates; a page needs nothing beside it."""

import jinja2


def render_page(template: str, **parts: object) -> str:
    """A page of HTML.

    Args:
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
    return environment.get_template(template).render(**parts)
