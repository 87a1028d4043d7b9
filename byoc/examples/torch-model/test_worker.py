import asyncio

import torch
from worker import TorchEdges

from byoc import VideoFrame


def test_an_edge_is_found_and_a_plain_wall_is_not():
    async def processed() -> torch.Tensor:
        processor = TorchEdges()
        await processor.load_model()
        picture = torch.zeros(1, 32, 32, 3)
        picture[:, :, 16:] = 1
        return (await processor.process_video_async(VideoFrame.from_tensor(picture))).tensor

    found = asyncio.run(processed()).cpu()
    assert found[0, 16, 16, 0] == 1
    assert found[0, 4:28, 4:12].max() == 0
