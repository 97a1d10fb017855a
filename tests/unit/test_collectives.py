"""What a compiled program sends, counted in its text."""

from __future__ import annotations

import pytest

from ldmscale.training.collectives import Traffic, collectives

# As XLA writes them: layouts with tiles for a TPU, several arrays in one collective, a start apart from its end, loops.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,64]{1,0})->f32[8,64]{1,0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], bf16[128])) -> (s32[], bf16[128]) {
  %p = (s32[], bf16[128]{0}) parameter(0)
  %part = bf16[128]{0:T(256)(128)(2,1)} get-tuple-element(%p), index=1
  ROOT %moved = bf16[128]{0} collective-permute(%part), channel_id=1, source_target_pairs={{0,1},{1,0}}
}

%body (q: (s32[], f32[16])) -> (s32[], f32[16]) {
  %q = (s32[], f32[16]{0}) parameter(0)
  %slice.1 = f32[16]{0:T(128)} get-tuple-element(%q), index=1
  %gather = (f32[16]{0:T(128)}, f32[64]{0:T(128)}) all-gather-start(%slice.1), channel_id=2, dimensions={0}
  %whole = f32[64]{0:T(128)} all-gather-done(%gather)
  %scattered = f32[16]{0} reduce-scatter(%whole), channel_id=3, dimensions={0}, to_apply=%add
  %again = (s32[], bf16[128]{0}) while(%t), condition=%until, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = (s32[], f32[16]{0}) tuple(%n, %scattered)
}

%until (c: (s32[], f32[16])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

%counted (c: (s32[], f32[16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %index = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %fewer = pred[]{:T(512)} compare(%index, %limit), direction=LT
}

%wrapped (w: s8[10]) -> s8[40] {
  %w = s8[10]{0} parameter(0)
  ROOT %gathered = s8[40]{0} all-gather(%w), dimensions={0}
}

ENTRY %main (a: f32[8,64], b: pred[]) -> f32[8,64] {
  %a = f32[8,64]{1,0:T(8,128)S(1)} parameter(0)
  %b = pred[] parameter(1)
  %reduced = (f32[8,64]{1,0:T(8,128)}, /*index=1*/pred[]) all-reduce(%a, %b), replica_groups={{0,1}}, to_apply=%add
  %lone = f32[8,64]{1,0} all-reduce-start(%a), to_apply=%add
  %done = f32[8,64]{1,0} all-reduce-done(%lone)
  %w = s8[40]{0} async-start(%small), calls=%wrapped
  %text = f32[] custom-call(%a), metadata={op_name="all-gather(%a)"}
  %loop = (s32[], f32[16]{0}) while(%t), condition=%until, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %unknown = (s32[], bf16[128]{0}) while(%t), condition=%until, body=%inner
  %scan = (s32[], bf16[128]{0}) while(%t), condition=%counted, body=%inner
  ROOT %end = f32[8,64]{1,0} copy(%done)
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    assert collectives(PROGRAM) == {
        "all-reduce": Traffic(2, (8 * 64 * 4 + 1) + 8 * 64 * 4),
        "all-gather": Traffic(3 + 1, 3 * 64 * 4 + 40),
        "reduce-scatter": Traffic(3, 3 * 64 * 4),  # of what is put in
        "collective-permute": Traffic(3 * 5 + 1 + 7, (3 * 5 + 1 + 7) * 128 * 2),
    }


def test_a_text_without_a_program_is_no_silent_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("%add (x: f32[]) -> f32[] {\n}\n")
