import pytest

from acestep_gguf import ort_session


def test_saturation_is_switched_off_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    def setting(*flags: str) -> str:
        monkeypatch.setattr(ort_session, "cpu_flags", lambda: frozenset(flags))
        try:
            return str(ort_session.session_options(1).get_session_config_entry("session.x64quantprecision"))
        except RuntimeError:
            return "not set"

    assert setting("avx2", "avx512f") == setting() == "1"
    assert setting("avx2", "avx_vnni") == setting("avx512_vnni") == "not set"
