"""Put on a daemon's module path as ``sitecustomize``: makes real parts fail as hardware does, when a file says so."""

from __future__ import annotations

from pathlib import Path

DEVICE_FAILS = '''
import importlib.abc, importlib.util, os, sys

class Finder(importlib.abc.MetaPathFinder):
    """After the engine's core is imported, its prefill fails as a lost GPU does, as often as a file has lines."""

    def find_spec(self, name, path, target=None):
        if name != "cag_daemon.engine.cag":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            real = module.prefill

            def prefill(*args, **kwargs):
                import torch

                orders = open(os.environ["DEVICE_FAILS"]).read().splitlines()
                if orders:
                    open(os.environ["DEVICE_FAILS"], "w").write("\\n".join(orders[1:]))
                    raise torch.AcceleratorError("CUDA error: unspecified launch failure")
                return real(*args, **kwargs)

            module.prefill = prefill

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
'''


def device_that_fails(folder: Path, times: int) -> dict[str, str]:
    """The environment of a daemon whose device fails so many times."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DEVICE_FAILS, encoding="utf-8")
    orders = folder / "orders"
    orders.write_text("fail\n" * times, encoding="utf-8")
    return {"PYTHONPATH": str(folder), "DEVICE_FAILS": str(orders)}
