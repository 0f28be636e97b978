"""Windows over a row: each token once, far from edges, with a context in front."""

from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_magnet.words_magnet import plan_windows, windows_of_text


@settings(max_examples=200, deadline=None)
@given(data=st.data(), length=st.integers(1, 200), size=st.integers(1, 40))
def test_windows_cover_a_row_and_keep_each_token_far_from_edges(data, length, size):
    overlap = data.draw(st.integers(0, size - 1))
    context = data.draw(st.integers(0, overlap))
    windows = plan_windows(length, size=size, overlap=overlap, context=context)
    kept = [place for window in windows for place in range(window.keep_start, window.keep_end)]
    assert kept == list(range(length)), "each token once, in order"
    for window in windows:
        assert window.end - window.start == min(size, length)
        assert window.start <= window.keep_start and window.keep_end <= window.end
        # Half of an overlap stands on each side of what is kept, or the context in front, but at the ends of the row.
        assert window.start == 0 or window.keep_start - window.start >= max(overlap // 2, context)
        assert window.end == length or window.end - window.keep_end >= min(overlap // 2, overlap - context)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(0, 60), size=st.integers(2, 12), overlap=st.one_of(st.none(), st.integers(0, 11)))
def test_a_later_window_has_a_token_in_front_of_what_it_keeps(length, size, overlap):
    if overlap is not None:
        overlap = min(overlap, size - 1)
    windows = windows_of_text(length, num_front=1, size=size, overlap=overlap, shift="next")
    assert [place for window in windows for place in range(window.keep_start, window.keep_end)] == list(range(length))
    assert all(window.start < window.keep_start for window in windows[1:])
    unshifted = windows_of_text(length, num_front=1, size=size, overlap=overlap, shift="same")
    if overlap is None or overlap > 1:  # then there is a token anyway
        assert size < 8 and overlap is None or windows == unshifted
    causal = windows_of_text(length, num_front=1, size=size, overlap=overlap, shift="same", mode="causal")
    assert [place for window in causal for place in range(window.keep_start, window.keep_end)] == list(range(length))
    shared = size // 4 if overlap is None else overlap
    assert all(window.keep_start - window.start >= shared for window in causal[1:])
