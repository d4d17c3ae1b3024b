"""Build the wheel of a platform in dist/, also of another one than this machine's: `scripts/wheel`, `scripts/wheel win_amd64`.

The compiler is zig, which has the libraries of all platforms. A wheel for glibc on this machine's processor is tested.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}


def run(*command: object, **environment: str) -> None:
    subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}, check=True)


def main(name: str) -> None:
    folder, dist = ROOT / f"build/wheel-{name}", ROOT / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    dist.mkdir(exist_ok=True)
    run(
        sys.executable, "-m", "build", "--wheel", "--outdir", folder, f"-Cbuild-dir={folder}/cmake", "-Cinstall.strip=false",
        f"-Ccmake.define.CMAKE_TOOLCHAIN_FILE={ROOT}/scripts/zig.cmake",
        ZIG_TARGET=TARGETS[name], PYTHON=sys.executable, CMAKE_GENERATOR="Ninja",
    )  # fmt: skip
    (built,) = folder.glob("*-linux_*.whl")  # another name if the engine was not built
    tag = name.replace("manylinux_2_17", "linux")
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, built)
    (built,) = folder.glob("*.whl")
    if not name.startswith("manylinux"):
        shutil.move(built, dist / built.name)
        return
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", dist, built)  # names the oldest glibc with all symbols
    if name.endswith(platform.machine()):
        (repaired,) = dist.glob(f"*{name}.whl")
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv/bin/python"
        run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "hypothesis", "pytest", repaired)
        run(python, "-m", "pytest", "tests/test_wheel.py")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else f"manylinux_2_17_{platform.machine()}"
    sys.exit(main(chosen) if chosen in TARGETS else f"unknown platform {chosen}; choose from {', '.join(TARGETS)}")
