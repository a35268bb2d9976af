"""Python programs that read a pack without this project; the card shows them, and tests run them."""

_CUT_JPEG = """

def clip_of(picture_HW, num_frames):
    cells = [
        picture_HW[y : y + {px}, x : x + {px}]
        for x in range(0, picture_HW.shape[1], {px})
        for y in range(0, picture_HW.shape[0], {px})
    ]
    return np.stack(cells[:num_frames])


"""
_DECODE_VIDEO = """

def clip_of(video):
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


"""
_WEBDATASET = """{standard}from pathlib import Path

{imports}import webdataset
{function}shards = sorted(str(path) for path in Path("{split}").glob("*.tar"))
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode({how}):
    about = sample["json"]
    clip_THW = {clip}
    print(about["clip_id"], clip_THW.shape, about["label"])
"""
_DATASETS = """{standard}{imports}from datasets import {names}
{function}samples = load_dataset("webdataset", data_files="{split}/*.tar", split="train", streaming=True)
for sample in samples{cast}:
    about = sample["json"]
    clip_THW = {clip}
    print(about["clip_id"], clip_THW.shape, about["label"])
"""


def with_webdataset(codec: str, extension: str, size_px: int, split: str) -> str:
    """Returns a program that prints id, shape and label of every clip of a split, with webdataset."""
    member = f'sample["{extension}"]'
    return _WEBDATASET.format(
        standard="import io\n" if _is_video(codec) else "",
        imports="" if codec == "raw" else _imports(codec),
        function=_function(codec, size_px),
        split=split,
        # webdataset decodes numpy's format by itself; pictures need a format
        how='"l8"' if codec == "jpeg" else "",
        clip={"raw": member, "jpeg": f'clip_of({member}, about["num_frames"])'}.get(
            codec, f"clip_of({member})"
        ),
    )


def with_datasets(codec: str, extension: str, size_px: int, split: str) -> str:
    """Returns the same with Hugging Face datasets, which returns .npy as lists and decodes video itself."""
    clip = {
        "raw": 'np.array(sample["npy"], np.uint8)',
        "jpeg": 'clip_of(np.array(sample["jpg"]), about["num_frames"])',
    }.get(codec, f'clip_of(sample["{extension}"]["bytes"])')
    return _DATASETS.format(
        standard="import io\n\n" if _is_video(codec) else "",
        imports=_imports(codec),
        names="Video, load_dataset" if _is_video(codec) else "load_dataset",
        function=_function(codec, size_px),
        split=split,
        cast=f'.cast_column("{extension}", Video(decode=False))' if _is_video(codec) else "",
        clip=clip,
    )


def _is_video(codec: str) -> bool:
    return codec in ("h264", "ffv1")


def _imports(codec: str) -> str:
    return "import av\nimport numpy as np\n" if _is_video(codec) else "import numpy as np\n"


def _function(codec: str, size_px: int) -> str:
    if codec == "raw":
        return "\n"
    return _DECODE_VIDEO if _is_video(codec) else _CUT_JPEG.format(px=size_px)
