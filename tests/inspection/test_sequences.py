from pspnet.inspection.sequences import BLOCK, Grouping, Neighbors, choose_grouping
from pspnet.raw.layouts.pairs import FoundImage
from pspnet.raw.masks import Numbers

FRAMES = [FoundImage(f"{n:03}", f"images/{n:03}.png", Numbers(f"masks/{n:03}.png")) for n in range(400)]
BLOCKS = Grouping(r"(.*\d)\d$", groups=40, largest=10, meaning=f"10 {BLOCK}")


def test_only_a_sequence_whose_neighbors_look_alike_is_cut_into_blocks() -> None:
    assert choose_grouping([BLOCKS], FRAMES, Neighbors(following=0.9, any_two=0.1, compared=24), "kept") == BLOCKS
    for following, any_two in ((0.3, 0.1), (0.9, 0.8)):
        assert choose_grouping([BLOCKS], FRAMES, Neighbors(following, any_two, compared=24), "kept") is None
    assert choose_grouping([BLOCKS], FRAMES, None, "kept") is None
