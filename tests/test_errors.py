"""What a user reads is one line."""

from tunediff.errors import TunediffError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    said = str(TunediffError("x.parquet: not readable (No more data.\n); column 'a\r\nb\u2028c'"))
    assert said == "x.parquet: not readable (No more data. ); column 'a b c'"
