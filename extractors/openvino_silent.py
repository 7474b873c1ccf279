"""OpenVINO without its telemetry. The only place of vtag that imports it.

`import openvino` (2023.1 to 2026.4 at least) tells Google Analytics that it was imported, unless
its dependency openvino-telemetry can not be imported; it then goes on with an empty stand-in of
its own. vtag promises to use no network, so for the time of the import that is so here.
"""

from __future__ import annotations

import sys

_TELEMETRY = "openvino_telemetry"
_before = sys.modules.get(_TELEMETRY)
sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # "importing it fails", says Python
try:
    import openvino
    from openvino import opset13
finally:
    if _before is None:
        del sys.modules[_TELEMETRY]
    else:
        sys.modules[_TELEMETRY] = _before

__all__ = ["openvino", "opset13"]
