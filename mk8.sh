cd /tmp/wt/w18
rm -rf mem/320; PYTHONPATH=/tmp/wt/w18 python - <<'P' 2>/dev/null
import warnings; warnings.simplefilter("ignore")
from pathlib import Path
from pfdiff.bench.studies import build_memory as bm
p=Path("/tmp/wt/w18/mem/320"); p.mkdir(parents=True); print(bm.save(p,320,8))
P
PYTHONPATH=/tmp/wt/w18 python probe.py /tmp/wt/w18/mem/320 fp16 > mem/320fp16.log 2>&1
