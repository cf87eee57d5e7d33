"""An engine directory is compiled, loaded and run.

ONNX Runtime 1.29 and later reports to its maker unless this variable says otherwise before its first import, which
only happens below this folder. Who sets the variable decides.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
