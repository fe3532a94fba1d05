from __future__ import annotations

import torch

from vidchat.batch import INITIATOR, RESPONDER
from vidchat.model.chunks import (
    ChunkEmbedding,
    CodeShape,
    PatchUpsample,
    audio_positions,
    patchify,
    patchify_padded,
    unpatchify,
    video_positions,
)

CODES = CodeShape(codec_frames=3, codebooks=2, vocabulary=5)


def test_visual_tokens_are_row_major():
    """Token 1 is the patch to the right of token 0; its values are channel, row, column."""
    latents = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = patchify(latents, 2)
    assert tokens.shape == (1, 6, 8)
    assert torch.equal(tokens[0, 0], latents[0, :, 0:2, 0:2].flatten())
    assert torch.equal(tokens[0, 1], latents[0, :, 0:2, 2:4].flatten())
    assert torch.equal(tokens[0, 3], latents[0, :, 2:4, 0:2].flatten())


def test_unpatchify_undoes_patchify():
    latents = torch.randn(2, 3, 5, 4, 6)
    assert torch.equal(unpatchify(patchify(latents, 2), 2, 2, 3), latents)


def test_a_grid_that_does_not_divide_is_padded_on_the_right_and_below():
    latents = torch.arange(1, 2 * 3 * 5 + 1.0).view(1, 2, 3, 5)
    tokens = patchify_padded(latents, 2)
    whole = unpatchify(tokens, 2, 2, 3)
    assert torch.equal(whole[..., :3, :5], latents)
    assert whole.sum() == latents.sum(), "zeros otherwise"
    assert torch.equal(patchify_padded(latents[..., :2, :4], 2), patchify(latents[..., :2, :4], 2))


TIMES = torch.tensor([[[10.0, 7, 5], [14, 7, 5]]])


def test_codec_frames_and_frames_of_one_instant_share_their_time():
    """A chunk of 4 frames ends with its last one; its codec frames end evenly until then."""
    assert audio_positions(TIMES, 4, 4)[0, :, :, 0].tolist() == [[7, 8, 9, 10], [11, 12, 13, 14]]
    assert audio_positions(TIMES, 4, 2)[0, 0, :, 0].tolist() == [8, 10]
    assert audio_positions(TIMES, 4, 12)[0, 1, -1, 0] == video_positions(TIMES, (2, 2))[0, 1, 0, 0] == 14
    assert (audio_positions(TIMES, 4, 12)[..., 1:] == torch.tensor([7, 5])).all()


def test_visual_tokens_stand_at_the_centre_of_what_they_cover():
    fine = video_positions(TIMES, (4, 6))
    assert fine.shape == (1, 2, 24, 3)
    assert fine[0, 0, [0, 1, 6, 23]].tolist() == [[10, 7, 5], [10, 7, 6], [10, 8, 5], [10, 10, 10]]
    assert (fine[0, 1, :, 0] == 14).all()
    for scale in (2, 3):
        rows, cols = -(-4 // scale), 6 // scale
        coarse = video_positions(TIMES, (rows, cols), scale)
        whole = video_positions(TIMES, (rows * scale, 6)).unflatten(2, (rows, scale, cols, scale))
        torch.testing.assert_close(coarse, whole.mean((3, 5)).flatten(2, 3))


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


def test_hidden_codes_are_replaced_by_the_start_token():
    embed = ChunkEmbedding(8, 4, CODES)
    start = embed.start + embed.sound + embed.role.weight[RESPONDER]
    codes, roles = torch.randint(5, (2, 4, 3, 2)), torch.full((2, 4), RESPONDER)
    hidden = torch.tensor([[True, False] * 2, [False, True] * 2])
    seen = embed.embed_codes(codes, roles, hidden)
    torch.testing.assert_close(seen[hidden], start.expand(4, 3, 8))
    assert torch.equal(seen[~hidden], embed.embed_codes(codes, roles)[~hidden])
