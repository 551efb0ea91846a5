"""Builds pynas._core and libpynas_ops.so with CMake, whose CMakeLists.txt is the only build description.

Everything else is in pyproject.toml. PYNAS_SANITIZE, PYNAS_WERROR, PYNAS_CUDA and PYNAS_CUDA_ARCHITECTURES in the
environment set CMake's options of these names.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        options = ("PYNAS_SANITIZE", "PYNAS_WERROR", "PYNAS_CUDA", "PYNAS_CUDA_ARCHITECTURES")
        configure = [
            *("cmake", "-S", str(Path(__file__).resolve().parent), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            *(f"-D{name}={os.environ[name]}" for name in options if os.environ.get(name)),
        ]
        compile_ = ["cmake", "--build", str(build)]
        if self.parallel:
            compile_ += ["--parallel", str(self.parallel)]
        # The interpreter's folder comes last: it has cmake and ninja where a virtual environment is used without
        # being activated, while an isolated build has its own, which are first on PATH.
        environment = {**os.environ, "PATH": os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(compile_, check=True, env=environment)

    def copy_extensions_to_source(self) -> None:
        """Of an editable installation, which copies what it knows to be extensions."""
        super().copy_extensions_to_source()
        for library in Path(self.build_lib, "pynas").glob("libpynas_ops.so"):
            shutil.copy2(library, Path(__file__).resolve().parent / "pynas")


setup(ext_modules=[Extension("pynas._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
