"""What a guest quotes of what it was sent. Pure.

The Linux guest quotes a request that it cannot read, the whole of it, in its answer and in its log; with the
environments and policies in it::

    failed to unmarshal JSON for ContainerConfig "{...}": ...

Source: hcsshim internal/guest/bridge/bridge_v2.go and internal/guest/prot/protocol.go.
"""

from __future__ import annotations

import re
from typing import Any, Final

#: From the start of the quoted document to its end, or that of the text; the quotation marks are escaped
#: where the text is JSON itself.
_QUOTED: Final = re.compile(r'(unmarshal JSON[^"\\]{0,64}\\*")\{(?:.*\}(?=\\*")|.*)', re.DOTALL)


def without_quotes(value: Any) -> Any:
    """Give a JSON value of the guest with ``(hidden)`` for the documents that its texts quote.

    The value itself is not changed.
    """
    if isinstance(value, str):
        return _QUOTED.sub(r"\1(hidden)", value) if "unmarshal JSON" in value else value
    if isinstance(value, dict):
        return {name: without_quotes(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_quotes(each) for each in value]
    return value
