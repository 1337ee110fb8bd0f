"""Ask pip-audit whether a dependency that is installed here has a known vulnerability.

    make audit

Exits 1 where it has one. Where pip-audit is not installed, or its database cannot be reached, that is said
and nothing fails: no answer is no finding.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

COMMAND = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]


def main() -> int:
    if find_spec("pip_audit") is None:
        print("not audited: pip-audit is not installed (pip install pip-audit)")
        return 0
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    code, text = verdict(done.stdout, done.stderr)
    print(text)
    return code


def verdict(out: str, err: str) -> tuple[int, str]:
    """Return the exit code and what to say of pip-audit's two outputs."""
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = err.strip().splitlines() or ["no word why"]
        return 0, f"not audited: pip-audit gave no answer ({said[-1]})"
    bad = [
        f"{package['name']} {package['version']}: {found['id']},"
        f" mended in {', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    if bad:
        return 1, "\n".join([f"{len(bad)} known vulnerabilities:", *bad])
    return 0, f"audited: {len(packages)} packages, no known vulnerability"


if __name__ == "__main__":
    sys.exit(main())
