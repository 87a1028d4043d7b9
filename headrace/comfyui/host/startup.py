"""Starting ComfyUI's modules in this process, in the order in which its own ``main.py`` takes the steps.

Its modules are imported by their names from its folder; nothing in it is changed, and what it would write
there (output, temporary files, settings of users, byte code) goes to a folder of ours. A step that another
version does not have is left out.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import itertools
import logging
import os
import sys
from pathlib import Path
from typing import Any

from headrace.comfyui.host import packs, prompt_server, untouched
from headrace.comfyui.host.loads import Loads
from headrace.comfyui.host.options import ComfyOptions
from stream.errors import EngineError

log = logging.getLogger(__name__)

_OUTPUTS = ("checkpoints", "clip", "vae", "diffusion_models", "loras")
"""Kinds of models that ComfyUI also looks for where its nodes save them."""


class Started:
    """ComfyUI's modules in this process, and what came of its packs. Made by `before_torch`."""

    def __init__(self, options: ComfyOptions) -> None:
        self.options = options
        self.folder_paths: Any = None
        self.args: Any = None
        self.nodes: Any = None
        self.execution: Any = None
        self.memory: Any = None
        self.server: prompt_server.StandIn | None = None
        self.packs: list[packs.Pack] = []
        self.device: Any = None
        self.loads = Loads(options.keep)

    @property
    def version(self) -> str:
        module = _optional("comfyui_version")
        return str(getattr(module, "__version__", "unknown"))


def before_torch(started: Started) -> None:
    """Everything up to the import of torch. Raises `EngineError`, or whatever the installation raises."""
    options = started.options
    directory = Path(options.directory)
    if not (directory / "folder_paths.py").is_file() or not (directory / "nodes.py").is_file():
        raise EngineError(f"{directory} is not a ComfyUI: it has no folder_paths.py or no nodes.py")
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    sys.argv[:] = [str(directory / "main.py"), *options.arguments]
    sys.path.insert(0, str(directory))
    os.chdir(directory)
    _parse_arguments(options)
    untouched.guard(options.directory)
    with untouched.looking():
        started.folder_paths = importlib.import_module("folder_paths")
    started.args = importlib.import_module("comfy.cli_args").args
    logger = _optional("app.logger")
    if logger is not None:
        # Its own log goes where the rest of this process's goes.
        logger.setup_logger(log_level=started.args.verbose, use_stdout=False)
    # Before nodes: packs have modules of the same name, and the first one stays.
    extra = importlib.import_module("utils.extra_config")
    _set_folders(started, extra)
    if options.prestart:
        packs.run_prestart_scripts(started.folder_paths, options.skip_packs)
    _set_devices(started.args)
    _optional("cuda_malloc")


def after_torch(started: Started) -> None:
    """Import its nodes and all packs. Raises whatever its own modules raise; a pack's fault is noted."""
    # Before other modules take functions from it.
    started.loads.wrap_reading(importlib.import_module("comfy.utils"), lambda: started.device)
    started.execution = importlib.import_module("execution")
    server = _server()
    started.nodes = importlib.import_module("nodes")
    started.memory = importlib.import_module("comfy.model_management")
    started.server = prompt_server.install(server, started.execution)
    hooks = _optional("hook_breaker_ac10a0")
    if hooks is not None:
        hooks.save_functions()
    _set_progress_hook(started.memory)
    started.packs = packs.load(started.nodes, _wanted(started), started.options.skip_packs)
    if hooks is not None:
        hooks.restore_functions()
    started.device = started.memory.get_torch_device()
    started.loads.wrap_loading(started.memory, started.device)


def _parse_arguments(options: ComfyOptions) -> None:
    module = _optional("comfy.options")
    if module is not None:
        module.enable_args_parsing()
    try:
        importlib.import_module("comfy.cli_args")
    except SystemExit as error:
        shown = " ".join(options.arguments) or "none"
        raise EngineError(
            f"ComfyUI does not take its arguments ({shown}); its log says why (status {error.code})"
        ) from error


def _set_folders(started: Started, extra: Any) -> None:
    paths, args, options = started.folder_paths, started.args, started.options
    configured = Path(options.directory) / "extra_model_paths.yaml"
    if configured.is_file():
        extra.load_extra_path_config(str(configured))
    for path in itertools.chain(*(getattr(args, "extra_model_paths_config", None) or [])):
        extra.load_extra_path_config(path)
    outputs = getattr(args, "output_directory", None) or paths.get_output_directory()
    for kind in _OUTPUTS:
        paths.add_model_folder_path(kind, os.path.join(os.path.abspath(outputs), kind))
    source = options.input_folder or getattr(args, "input_directory", None)
    if source:
        paths.set_input_directory(os.path.abspath(source))
    scratch = Path(options.scratch)
    for kind in ("output", "temp", "user"):
        folder = scratch / kind
        folder.mkdir(parents=True, exist_ok=True)
        set_folder = getattr(paths, f"set_{kind}_directory", None)
        if set_folder is not None:
            set_folder(str(folder))


def _set_devices(args: Any) -> None:
    """Which devices its torch will see, by its own options."""
    first = getattr(args, "default_device", None)
    only = getattr(args, "cuda_device", None)
    if first is not None:
        order = [first, *(number for number in range(32) if number != first)]
        only = ",".join(map(str, order))
    if only is not None:
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            os.environ[name] = str(only)
    if getattr(args, "oneapi_device_selector", None) is not None:
        os.environ["ONEAPI_DEVICE_SELECTOR"] = args.oneapi_device_selector
    if getattr(args, "deterministic", False):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _wanted(started: Started) -> dict[str, bool]:
    """What `nodes.init_extra_nodes` is asked for, as far as its version can be asked."""
    args = started.args
    custom = not getattr(args, "disable_all_custom_nodes", False) or bool(
        getattr(args, "whitelist_custom_nodes", [])
    )
    network = started.options.network and not getattr(args, "disable_api_nodes", False)
    asked = {"init_custom_nodes": custom, "init_api_nodes": network}
    known = inspect.signature(started.nodes.init_extra_nodes).parameters
    return {name: value for name, value in asked.items() if name in known}


def _set_progress_hook(memory: Any) -> None:
    """Sampling may be interrupted between two steps, as in the web server."""
    utils = importlib.import_module("comfy.utils")
    if not hasattr(utils, "set_progress_bar_global_hook"):
        return

    def hook(value: Any, total: Any, preview: Any = None, **named: Any) -> None:
        memory.throw_exception_if_processing_interrupted()

    utils.set_progress_bar_global_hook(hook)


def _server() -> Any:
    """ComfyUI's server module, of which no server is made; a hollow one where it cannot be imported."""
    try:
        return importlib.import_module("server")
    except (ImportError, AttributeError) as error:
        log.warning("ComfyUI's server module cannot be imported (%s); packs get a stand-in alone", error)
        sys.modules.pop("server", None)
        module: Any = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("server", None))
        module.PromptServer = type("PromptServer", (), {"instance": None})
        sys.modules["server"] = module
        return module


def _optional(name: str) -> Any:
    """The module, or None in a version that has none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        return None
