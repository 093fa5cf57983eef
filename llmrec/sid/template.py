"""Template of SID tokens: the text of the token of a (level, code)."""

from __future__ import annotations

import string

DEFAULT_TEMPLATE = "<{letter}_{code}>"
LONG_TEMPLATE = "<{level}_{code}>"  # for more levels than there are letters


def check_template(template: str, num_levels: int) -> None:
    """Refuse a template under which two codes would be the same token.

    Raises:
        ValueError: If the level or the code is not part of the token.
    """
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"template '{template}' has unbalanced braces ({error}).") from error
    fields = {name for name, _, _ in parts}
    is_plain = all(not spec and not conversion for _, spec, conversion in parts)
    if not is_plain or "code" not in fields or not {"letter", "level"} & fields or fields - {"letter", "level", "code"}:
        raise ValueError(
            f"template '{template}' must contain {{code}} and {{letter}} or {{level}}, and nothing else in braces: the "
            f"level is part of the token. Example: '{DEFAULT_TEMPLATE}'."
        )
    if num_levels > 26 and "level" not in fields:
        raise ValueError(f"{num_levels} levels need {{level}} in the template; {{letter}} names 26.")
