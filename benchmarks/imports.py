"""What importing costs beyond `import torch`: CPU seconds, each in a process of its own.

python -m benchmarks.imports
"""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 5
SCRIPTS = {
    "import icl_kernel_lens": "import icl_kernel_lens",
    "every public name": "import icl_kernel_lens as ikl; [getattr(ikl, name) for name in ikl.__all__]",
}


def seconds(script: str) -> float:
    """CPU seconds of a script in a process that has imported torch."""
    timed = f"import time, torch\nstart = time.process_time()\n{script}\nprint(time.process_time() - start)"
    out = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(out.stdout)


def main() -> None:
    """Print the least and the most of a few rounds."""
    for name, script in SCRIPTS.items():
        found = [seconds(script) for _ in range(ROUNDS)]
        print(f"{name}: {min(found):.2f} to {max(found):.2f} s of CPU beyond import torch ({ROUNDS} rounds)")


if __name__ == "__main__":
    main()
