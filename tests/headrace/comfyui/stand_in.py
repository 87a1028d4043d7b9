"""A small installation in ComfyUI's layout, with packs that behave in the ways in which packs do.

It has what an engine asks of one, and nothing more; whether a real one answers alike is for
`tests/comfyui`, which runs where there is one.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

FILES = {
    "main.py": "raise SystemExit('an engine never runs this')\n",
    "comfyui_version.py": "__version__ = '9.9.9'\n",
    "comfy/__init__.py": "",
    "comfy/options.py": """
        args_parsing = False

        def enable_args_parsing(enable=True):
            global args_parsing
            args_parsing = enable
        """,
    "comfy/cli_args.py": """
        import argparse
        from comfy import options

        parser = argparse.ArgumentParser()
        parser.add_argument("--cpu", action="store_true")
        parser.add_argument("--cuda-device", type=int)
        parser.add_argument("--verbose", default="INFO")
        parser.add_argument("--disable-api-nodes", action="store_true")
        parser.add_argument("--extra-model-paths-config", nargs="+", action="append")
        args = parser.parse_args() if options.args_parsing else parser.parse_args([])
        """,
    "comfy/utils.py": """
        import os

        hook = None

        def load_torch_file(ckpt, safe_load=False, device=None):
            assert os.path.isfile(ckpt)
            return {}

        def set_progress_bar_global_hook(function):
            global hook
            hook = function
        """,
    "comfy/model_management.py": """
        import os
        import torch
        import folder_paths

        assert torch  # this module comes after torch
        interrupted = False
        unloaded = 0

        class Model:
            # A patcher of weights that come to the device when they are wanted.

            def __init__(self, size):
                self.size, self.loaded, self.model = size, 0, self
                self.load_device, self.offload_device = torch.device("cpu"), torch.device("meta")

            def model_size(self):
                return self.size

            def loaded_size(self):
                return self.loaded

        class LoadedModel:
            def __init__(self, model):
                self.model, self.device = model, model.load_device

            def model_loaded_memory(self):
                return self.model.loaded_size()

            def __eq__(self, other):
                return self.model is other.model

        current_loaded_models = []

        def load_models_gpu(models, memory_required=0, **named):
            for model in models:
                model.loaded = model.size
                if LoadedModel(model) not in current_loaded_models:
                    current_loaded_models.append(LoadedModel(model))

        def free_memory(memory_required, device, keep_loaded=[]):
            for one in [one for one in current_loaded_models if one not in keep_loaded]:
                one.model.loaded = 0
                current_loaded_models.remove(one)

        def get_torch_device():
            return torch.device("cpu")

        def intermediate_device():
            return torch.device("cpu")

        def get_free_memory(device=None):
            # As much as a file of the test says, if there is one.
            told = os.path.join(folder_paths.get_temp_directory(), "free")
            return int(open(told).read()) if os.path.exists(told) else 64 << 30

        def get_total_memory(device=None):
            return 128 << 30

        def unload_all_models():
            free_memory(1e30, get_torch_device())

        def soft_empty_cache():
            pass

        def interrupt_current_processing(value=True):
            global interrupted
            interrupted = value

        def throw_exception_if_processing_interrupted():
            if interrupted:
                raise RuntimeError("interrupted")
        """,
    "folder_paths.py": """
        import os, sys
        from comfy.cli_args import args

        assert "torch" not in sys.modules, "torch comes too early"
        base_path = os.path.dirname(os.path.realpath(__file__))
        input_directory = os.path.join(base_path, "input")
        output_directory = os.path.join(base_path, "output")
        temp_directory = os.path.join(base_path, "temp")
        user_directory = os.path.join(base_path, "user")
        folder_names_and_paths = {
            "checkpoints": ([os.path.join(base_path, "models", "checkpoints")], {".safetensors"}),
            "custom_nodes": ([os.path.join(base_path, "custom_nodes")], set()),
        }
        os.makedirs(os.path.join(base_path, "made_at_import"), exist_ok=True)

        def add_model_folder_path(kind, path, is_default=False):
            folder_names_and_paths.setdefault(kind, ([], set()))[0].append(path)

        def get_folder_paths(kind):
            return list(folder_names_and_paths[kind][0])

        def get_filename_list(kind):
            found = []
            for folder in get_folder_paths(kind):
                found += os.listdir(folder) if os.path.isdir(folder) else []
            return sorted(found)

        def get_input_directory(): return input_directory
        def get_output_directory(): return output_directory
        def get_temp_directory(): return temp_directory
        def get_user_directory(): return user_directory

        def set_input_directory(path): globals()["input_directory"] = path
        def set_output_directory(path): globals()["output_directory"] = path
        def set_temp_directory(path): globals()["temp_directory"] = path
        def set_user_directory(path): globals()["user_directory"] = path
        """,
    "utils/__init__.py": "",
    "utils/extra_config.py": """
        import os, sys
        import folder_paths

        assert "nodes" not in sys.modules, "nodes come too early"

        def load_extra_path_config(path):
            kind, _, folder = open(path).read().strip().partition(":")
            folder_paths.add_model_folder_path(kind, os.path.join(os.path.dirname(path), folder.strip()))
        """,
    "extra_model_paths.yaml": "checkpoints: elsewhere/checkpoints\n",
    "elsewhere/checkpoints/further.safetensors": "not looked at",
    "execution.py": """
        class PromptQueue:
            def __init__(self, server):
                self.server = server
        """,
    "server.py": """
        class Routes:
            def get(self, path):
                return lambda handler: handler

        class web:
            RouteTableDef = Routes
            Application = object

        class PromptServer:
            instance = None
        """,
    "nodes.py": """
        import importlib.util, logging, os, sys
        import folder_paths
        import comfy.model_management
        import comfy.utils

        class Invert:
            CATEGORY = "image"
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"image": ("IMAGE",)}}

            def run(self, image):
                return (1.0 - image,)

        class Blend:
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"image": ("IMAGE",), "other": ("IMAGE",)}}

            def run(self, image, other):
                return (image,)

        class Scale:
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                by = ("FLOAT", {"default": 1.0, "min": 0, "max": 8})
                return {"required": {"image": ("IMAGE",), "by": by}}

            def run(self, image, by):
                return (image * by,)

        class Checkpoint:
            RETURN_TYPES = ("FLOAT",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"ckpt_name": (folder_paths.get_filename_list("checkpoints"),)}}

            def run(self, ckpt_name):
                for folder in folder_paths.get_folder_paths("checkpoints"):
                    if os.path.isfile(os.path.join(folder, ckpt_name)):
                        comfy.utils.load_torch_file(os.path.join(folder, ckpt_name))
                size = (128 if ckpt_name.startswith("further") else 4) << 30
                model = comfy.model_management.Model(size)
                comfy.model_management.load_models_gpu([model])
                return (0.5,)

        class Sample:
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            def __init__(self):
                self.model = comfy.model_management.Model(50 << 20)

            @classmethod
            def INPUT_TYPES(cls):
                by = ("FLOAT", {"default": 1.0})
                return {"required": {"image": ("IMAGE",), "by": by}}

            def run(self, image, by):
                comfy.model_management.load_models_gpu([self.model])
                return (image * by,)

        class LoadImage:
            RETURN_TYPES = ("IMAGE", "MASK")
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                folder = folder_paths.get_input_directory()
                os.makedirs(os.path.join(folder, "3d"), exist_ok=True)
                names = os.listdir(folder) if os.path.isdir(folder) else []
                return {"required": {"image": (sorted(names), {"image_upload": True})}}

            @classmethod
            def VALIDATE_INPUTS(cls, image):
                # As in ComfyUI: whatever exists will do, wherever it is.
                path = os.path.join(folder_paths.get_input_directory(), image)
                return True if os.path.exists(path) else f"Invalid image file: {image}"

            def run(self, image):
                import torch
                return (torch.ones(1, 8, 8, 3), torch.zeros(1, 8, 8))

        NODE_CLASS_MAPPINGS = {c.__name__: c for c in (Invert, Blend, Scale, Checkpoint, Sample, LoadImage)}
        NODE_DISPLAY_NAME_MAPPINGS = {"Invert": "Invert Image"}

        async def load_custom_node(path, ignore=set(), module_parent="custom_nodes"):
            name = path.replace(".", "_x_")
            file = path if os.path.isfile(path) else os.path.join(path, "__init__.py")
            try:
                spec = importlib.util.spec_from_file_location(name, file)
                module = sys.modules[name] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                for key, node in module.NODE_CLASS_MAPPINGS.items():
                    if key not in ignore:
                        NODE_CLASS_MAPPINGS[key] = node
                        node.RELATIVE_PYTHON_MODULE = f"{module_parent}.{os.path.basename(path)}"
                return True
            except Exception as error:
                logging.warning(f"Cannot import {path}: {error}")
                return False

        async def init_extra_nodes(init_custom_nodes=True, init_api_nodes=True):
            base = set(NODE_CLASS_MAPPINGS)
            here = os.path.dirname(__file__)
            if init_api_nodes:
                await load_custom_node(os.path.join(here, "paid.py"), module_parent="comfy_api_nodes")
            for folder in folder_paths.get_folder_paths("custom_nodes") if init_custom_nodes else ():
                for name in sorted(os.listdir(folder)):
                    if name != "__pycache__":
                        await load_custom_node(os.path.join(folder, name), base)
        """,
    "paid.py": """
        class Paid:
            API_NODE = True
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"image": ("IMAGE",)}}

            def run(self, image):
                return (image,)

        NODE_CLASS_MAPPINGS = {"Paid": Paid}
        """,
    "input/cat.png": "not looked at",
    "models/checkpoints/tiny.safetensors": "not looked at",
    "custom_nodes/good/prestartup_script.py": """
        import os, sys
        assert "torch" not in sys.modules, "torch comes too early"
        os.environ["PRESTARTED"] = "1"
        """,
    "custom_nodes/exits/prestartup_script.py": "raise SystemExit('not before this either')\n",
    "custom_nodes/ComfyUI-Manager/prestartup_script.py": "import os\nos.environ['MANAGED'] = '1'\n",
    "custom_nodes/good/__init__.py": """
        import os, sys, time
        import folder_paths

        class Shift:
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            def __init__(self):
                self.frames = 0

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"image": ("IMAGE",), "by": ("FLOAT", {"default": 0.25})}}

            def run(self, image, by):
                # Counted for each instance, so that two streams that share one would show it.
                # Black begins anew, because made-up frames are counted, too.
                self.frames = self.frames + 1 if image.any() else 0
                return (image * 0 + by * self.frames,)

        class ReadFile:
            RETURN_TYPES = ("FLOAT",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"file_path": ("STRING", {"default": "cat.png"})}}

            def run(self, file_path):
                return (0.5,)

        class Text:
            RETURN_TYPES = ("STRING",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"text": ("STRING", {"multiline": True})}}

            def run(self, text):
                return (text,)

        class Slow:
            RETURN_TYPES = ("FLOAT",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                number = ("FLOAT", {"default": 1.0})
                return {"required": {"seconds": number, "value": number}}

            def run(self, seconds, value):
                time.sleep(seconds)
                return (value,)

        class Asked:
            # It hashes for as long as there is a file `hold` in a folder of the test.
            RETURN_TYPES = ("FLOAT",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"value": ("FLOAT", {"default": 1.0})}}

            @classmethod
            def IS_CHANGED(cls, value):
                folder, until = os.environ["QUESTIONS"], time.monotonic() + 60
                while os.path.exists(os.path.join(folder, "hold")) and time.monotonic() < until:
                    open(os.path.join(folder, "asked"), "w").close()
                    time.sleep(0.01)
                return value

            def run(self, value):
                return (value,)

        class Quits:
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"image": ("IMAGE",)}}

            def run(self, image):
                if (image == 1).all():  # white, as no made-up frame is
                    sys.exit(3)
                return (image,)

        NODE_CLASS_MAPPINGS = {c.__name__: c for c in (Shift, ReadFile, Text, Slow, Asked, Quits)}
        for name in ("PRESTARTED", "MANAGED"):  # which scripts have run is seen by these classes
            if name in os.environ:
                NODE_CLASS_MAPPINGS[name] = Shift
        """,
    "custom_nodes/fails/__init__.py": "import a_package_that_nobody_has\n",
    "custom_nodes/exits/__init__.py": "import sys\nsys.exit('no GPU, no fun')\n",
    "custom_nodes/leaves/__init__.py": "import os\nos._exit(7)\n",
    "custom_nodes/prints/__init__.py": """
        import sys
        print("hello from a pack")
        sys.stdout.write("\\0{binary}\\n" * 10)

        class Prints:
            RETURN_TYPES = ("IMAGE",)
            FUNCTION = "run"

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {"image": ("IMAGE",)}}

            def run(self, image):
                print("a frame of", image.shape)
                return (image,)

        NODE_CLASS_MAPPINGS = {"Prints": Prints}
        """,
    "custom_nodes/serves/__init__.py": """
        from server import PromptServer

        @PromptServer.instance.routes.get("/mine")
        async def mine(request):
            return None

        PromptServer.instance.send_sync("hello", {})
        PromptServer.instance.something_new(1, two=2).and_more()
        assert PromptServer.instance.client_id is None
        assert PromptServer.instance.prompt_queue.server is PromptServer.instance
        assert PromptServer.instance.loop.is_running() or True
        NODE_CLASS_MAPPINGS = {}
        """,
    "custom_nodes/ComfyUI-Manager/__init__.py": "raise AssertionError('it is not to be loaded')\n",
}  # fmt: skip


def write_installation(folder: Path) -> Path:
    """Write it into ``folder``, which is then its directory."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
    return folder


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below ``folder``, with its contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
