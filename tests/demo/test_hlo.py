import pytest

from optkit.demo.hlo import collectives, total_bytes

TEXT = """\
HloModule step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%turn (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %whole = bf16[16,4]{1,0} all-gather(%part), channel_id=1, replica_groups={{0,1}}
  ROOT %next = (s32[], f32[8]{0}) tuple(%i, %x)
}

%open (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %moved = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1}}
}

%rare (p: f32[8]) -> f32[8] {
  %both = (f32[4]{0}, /*index=1*/pred[]) all-reduce(%a, %b), to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%t), condition=%test, body=%turn, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %other = (s32[], f32[8]{0}) while(%t), condition=%test, body=%open
  %pick = f32[8]{0} conditional(%k, %x, %x), branch_computations={%turn, %rare}
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(%part), channel_id=4
  %done = f32[8]{0} all-gather-done(%start)
  ROOT %out = f32[8]{0} add(%done, %done)
}
"""


def test_every_collective_is_found_with_its_bytes_and_how_often_it_runs():
    # Oracle: the text, read by hand.
    assert [tuple(found) for found in collectives(TEXT)] == [
        ("all-gather", ("bf16[16,4]",), 128, 3, False),
        ("collective-permute", ("f32[8]",), 32, 1, True),
        ("all-gather", ("bf16[16,4]",), 128, 1, True),
        ("all-reduce", ("f32[4]", "pred[]"), 17, 1, True),
        ("all-gather", ("f32[8]",), 32, 1, False),
    ]
    assert total_bytes(collectives(TEXT)) == {"all-gather": 3 * 128 + 32}


def test_a_text_that_is_no_program_is_refused():
    # Oracle: the message.
    with pytest.raises(ValueError, match=r"Pass `jax\.jit"):
        collectives("x")
