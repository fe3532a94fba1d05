from __future__ import annotations

import torch

from vidchat.batch import INITIATOR, RESPONDER
from vidchat.model.chunks import ChunkEmbedding, CodeShape, PatchUpsample, patchify

CODES = CodeShape(codec_frames=3, codebooks=2, vocabulary=5)


def test_visual_tokens_are_row_major():
    """Token 1 is the patch to the right of token 0; its values are channel, row, column."""
    latents = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = patchify(latents, 2)
    assert tokens.shape == (1, 6, 8)
    assert torch.equal(tokens[0, 0], latents[0, :, 0:2, 0:2].flatten())
    assert torch.equal(tokens[0, 1], latents[0, :, 0:2, 2:4].flatten())
    assert torch.equal(tokens[0, 3], latents[0, :, 2:4, 0:2].flatten())


def test_a_coarse_token_is_mapped_to_all_visual_tokens_it_covers():
    upsample = PatchUpsample(1, 1, 2)
    torch.nn.init.ones_(upsample.project.weight)
    with torch.no_grad():
        upsample.project.bias.copy_(torch.tensor([0.0, 0.1, 0.2, 0.3]))
    fine = upsample(torch.arange(6.0).view(1, 6, 1), (2, 3)).view(4, 6)
    torch.testing.assert_close(fine[:2, 2:4], torch.tensor([[1.0, 1.1], [1.2, 1.3]]))
    torch.testing.assert_close(fine[2:, 4:], torch.tensor([[5.0, 5.1], [5.2, 5.3]]))


def test_a_codec_frame_is_the_sum_of_its_codebook_embeddings():
    embed = ChunkEmbedding(8, 4, CODES)
    codes, roles = torch.randint(5, (2, 4, 3, 2)), torch.tensor([[INITIATOR, RESPONDER] * 2] * 2)
    tables = embed.codes.table.weight.view(2, 5, 8)
    summed = tables[0][codes[..., 0]] + tables[1][codes[..., 1]]
    expected = summed + embed.sound + embed.role.weight[roles][:, :, None]
    torch.testing.assert_close(embed.embed_codes(codes, roles), expected)


def test_chunk_0_and_hidden_codes_hold_the_start_token():
    embed = ChunkEmbedding(8, 4, CODES)
    start = embed.start + embed.sound + embed.role.weight[RESPONDER]
    torch.testing.assert_close(embed.start_tokens(2), start.expand(2, 1, 3, 8))
    codes, roles = torch.randint(5, (2, 4, 3, 2)), torch.full((2, 4), RESPONDER)
    hidden = torch.tensor([[True, False] * 2, [False, True] * 2])
    seen = embed.embed_codes(codes, roles, hidden)
    torch.testing.assert_close(seen[hidden], start.expand(4, 3, 8))
    assert torch.equal(seen[~hidden], embed.embed_codes(codes, roles)[~hidden])
