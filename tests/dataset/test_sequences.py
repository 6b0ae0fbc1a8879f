from pspnet.dataset.adapters.pairs import Found
from pspnet.dataset.inspection.sequences import BLOCK, Grouping, Neighbours, chosen
from pspnet.dataset.masks import Numbers

FRAMES = [Found(f"{n:03}", f"images/{n:03}.png", Numbers(f"masks/{n:03}.png")) for n in range(400)]
BLOCKS = Grouping(r"(.*\d)\d$", groups=40, largest=10, meaning=f"10 {BLOCK}")


def test_only_a_sequence_whose_neighbours_look_alike_is_cut_into_blocks() -> None:
    assert chosen([BLOCKS], FRAMES, Neighbours(following=0.9, any_two=0.1, compared=24), "kept") == BLOCKS
    for following, any_two in ((0.3, 0.1), (0.9, 0.8)):
        assert chosen([BLOCKS], FRAMES, Neighbours(following, any_two, compared=24), "kept") is None
    assert chosen([BLOCKS], FRAMES, None, "kept") is None
