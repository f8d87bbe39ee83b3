from __future__ import annotations

import asyncio
import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoint.fleet.models.model_cache import ModelCache
from endpoint.fleet.models.model_source import ModelDataError, ModelSource
from testing.emulator import Emulator

BUCKET = "models"
URL = f"s3://{BUCKET}/model.tar.gz"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    yield emulator
    emulator.close()


@pytest.fixture
def s3(emulator: Emulator) -> Iterator[Any]:
    s3 = emulator.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    yield s3
    for found in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3.delete_object(Bucket=BUCKET, Key=found["Key"])


@pytest.fixture
def cache(tmp_path: Path, emulator: Emulator) -> Iterator[ModelCache]:
    cache = ModelCache(tmp_path / "models", emulator)
    cache.remove_unfinished()
    yield cache
    asyncio.run(cache.keep_only([]))  # pytest can't remove what is read-only


def archive(*members: tuple[str, bytes | tarfile.TarInfo]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(content) if isinstance(content, bytes) else 0
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def lay_out(cache: ModelCache, source: ModelSource | None, timeout_s: float = 60) -> Path:
    async def run() -> Path:
        async with cache.hold(source, timeout_s) as directory:
            return directory

    return asyncio.run(run())


def from_url(**container: Any) -> ModelSource:
    source = ModelSource.of({"ModelDataUrl": URL, **container})
    assert source is not None
    return source


def from_s3(uri: str, data_type: str = "S3Prefix", compression: str = "None", **more: str) -> ModelSource:
    data_source = {"S3Uri": uri, "S3DataType": data_type, "CompressionType": compression, **more}
    source = ModelSource.of({"ModelDataSource": {"S3DataSource": data_source}})
    assert source is not None
    return source


def reason(cache: ModelCache, source: ModelSource) -> str:
    with pytest.raises(ModelDataError) as error:
        lay_out(cache, source)
    assert [path for path in cache._directory.iterdir() if path.name != "empty"] == []
    return str(error.value)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# Laying out


def test_archive_is_extracted_read_only(cache: ModelCache, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(("config.json", b"{}"), ("code/run.py", b"pass")))
    directory = lay_out(cache, from_url())
    assert content(directory) == {"config.json": b"{}", "code/run.py": b"pass"}
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o222 for path in [directory, *directory.rglob("*")]}
    assert modes == {0}


def test_gzip_object_is_extracted(cache: ModelCache, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="m.tar.gz", Body=archive(("a", b"1")))
    assert content(lay_out(cache, from_s3(f"s3://{BUCKET}/m.tar.gz", "S3Object", "Gzip"))) == {"a": b"1"}


def test_prefix_becomes_paths(cache: ModelCache, s3: Any) -> None:
    for key in ("my/model/config.json", "my/model/deep/er/weights", "my/models/other"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    directory = lay_out(cache, from_s3(f"s3://{BUCKET}/my/model/"))
    assert content(directory) == {
        "config.json": b"my/model/config.json",
        "deep/er/weights": b"my/model/deep/er/weights",
    }


def test_object_is_named_by_keys_last_part(cache: ModelCache, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="a/b/weights.bin", Body=b"w")
    assert content(lay_out(cache, from_s3(f"s3://{BUCKET}/a/b/weights.bin", "S3Object"))) == {"weights.bin": b"w"}


def test_no_model_data_gives_empty_directory(cache: ModelCache) -> None:
    assert ModelSource.of({"Environment": {"HF_MODEL_ID": "some/model"}}) is None
    assert list(lay_out(cache, None).iterdir()) == []


def test_thousands_of_objects_are_all_there(cache: ModelCache, s3: Any) -> None:
    for number in range(1001):  # more than one page of a listing
        s3.put_object(Bucket=BUCKET, Key=f"many/{number}", Body=b"")
    assert len(content(lay_out(cache, from_s3(f"s3://{BUCKET}/many/")))) == 1001


# Keeping


def test_only_changed_data_is_fetched_again(cache: ModelCache, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(("a", b"1")))
    first = lay_out(cache, from_url())
    before = first.stat()
    assert lay_out(cache, from_url()) == first and first.stat() == before
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(("a", b"2")))
    second = lay_out(cache, from_url())
    assert content(second) == {"a": b"2"} and content(first) == {"a": b"1"}


def test_concurrent_starts_share_one_download(cache: ModelCache, s3: Any, emulator: Emulator) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(("a", b"1")))

    async def one() -> Path:
        async with cache.hold(from_url(), 60) as directory:
            return directory

    async def run() -> list[Path]:
        return await asyncio.gather(*(one() for _ in range(8)))

    gets = 0

    def count(**_: Any) -> None:
        nonlocal gets
        gets += 1

    s3.meta.events.register("before-send.s3.GetObject", count)
    assert len(set(asyncio.run(run()))) == 1
    s3.meta.events.unregister("before-send.s3.GetObject", count)
    assert gets == 1


def test_unused_models_are_removed_but_held_ones_kept(cache: ModelCache, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(("code/a", b"1")))

    async def run() -> Path:
        async with cache.hold(from_url(), 60) as directory:
            await cache.keep_only([])
            assert directory.exists()
        await cache.keep_only([directory])
        assert directory.exists()
        await cache.keep_only([])
        return directory

    assert not asyncio.run(run()).exists()


# Failures


@pytest.mark.parametrize(
    ("member", "what"),
    [
        (special(tarfile.SYMTYPE, "config.json"), "is a link"),
        (special(tarfile.LNKTYPE, "config.json"), "is a link"),
        (special(tarfile.CHRTYPE), "is a special file"),
        (special(tarfile.FIFOTYPE), "is a special file"),
    ],
)
def test_archived_links_and_devices_are_refused(cache: ModelCache, s3: Any, member: tarfile.TarInfo, what: str) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(("config.json", b"{}"), ("odd", member)))
    text = reason(cache, from_url())
    assert text.startswith(f'Failed to extract model data archive for container "container_1" from URL "{URL}".')
    assert f'"odd" in it {what}' in text


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_archive_cannot_write_elsewhere(cache: ModelCache, s3: Any, tmp_path: Path, name: str) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive((name, b"!")))
    assert "Failed to extract" in reason(cache, from_url())
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize(
    "body",
    [
        b"no archive at all",
        gzip.compress(b"no tar"),
        archive(("a", os.urandom(100_000)))[:50_000],
        archive(("a", b"1"))[:-4],  # without its checksum's end
        archive(("a", b"1"), ("a/b", b"2")),
        archive(("x" * 300, b"1")),
    ],
    ids=["text", "gzip of text", "cut short", "cut in the checksum", "clash", "long name"],
)
def test_broken_archive_is_refused(cache: ModelCache, s3: Any, body: bytes) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=body)
    assert reason(cache, from_url(ContainerHostname="mine")).startswith(
        'Failed to extract model data archive for container "mine" from URL'
    )


def test_missing_data_is_named_in_error(cache: ModelCache, s3: Any) -> None:
    for source in (from_url(), from_s3(f"s3://{BUCKET}/none/"), from_s3("s3://no-such-bucket/x/")):
        assert "Please ensure that there is an object located at the URL" in reason(cache, source)


@pytest.mark.parametrize("marker", ["m/", "m/a/", "m/a", "m/empty/", "m/a/deep/"])
def test_folder_marker_is_no_file(cache: ModelCache, s3: Any, marker: str) -> None:
    for key in ("m/a/deep/weights", "m/config.json"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    s3.put_object(Bucket=BUCKET, Key=marker, Body=b"")
    directory = lay_out(cache, from_s3(f"s3://{BUCKET}/m/"))
    assert content(directory) == {"a/deep/weights": b"1", "config.json": b"1"}
    assert {path.name for path in directory.iterdir()} == {"a", "config.json"}


def test_folder_marker_alone_is_no_model(cache: ModelCache, s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="m/", Body=b"")
    assert "Please ensure that there is an object located" in reason(cache, from_s3(f"s3://{BUCKET}/m/"))


@pytest.mark.parametrize(
    "keys",
    [("m/",), ("m/a/",), ("m/a", "m/a/b"), ("m//a",), ("m/./a",), ("m/../a",), ("m/" + "x" * 256,), ("m/ /a",)],
    ids=str,
)
def test_keys_that_are_not_paths_are_refused(cache: ModelCache, s3: Any, keys: tuple[str, ...]) -> None:
    for key in ("m/good", *keys):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    assert "name for a file" in (text := reason(cache, from_s3(f"s3://{BUCKET}/m/"))) or "both" in text


def test_invalid_sources_are_refused() -> None:
    with pytest.raises(ModelDataError, match="must end with a forward slash"):
        from_s3(f"s3://{BUCKET}/m")
    with pytest.raises(ModelDataError, match="Gzip"):
        from_s3(f"s3://{BUCKET}/m/", "S3Prefix", "Gzip")
    with pytest.raises(ModelDataError, match="not supported"):
        from_s3(f"s3://{BUCKET}/m/", ManifestS3Uri="s3://b/manifest")


def test_other_etag_than_requested_is_refused(cache: ModelCache, s3: Any) -> None:
    etag = s3.put_object(Bucket=BUCKET, Key="w", Body=b"w")["ETag"]
    lay_out(cache, from_s3(f"s3://{BUCKET}/w", "S3Object", ETag=etag))
    asyncio.run(cache.keep_only([]))
    assert "Its ETag is" in reason(cache, from_s3(f"s3://{BUCKET}/w", "S3Object", ETag='"other"'))


def test_download_stops_at_timeout(tmp_path: Path) -> None:
    class Stuck:
        """An S3 that does not answer until `go` is set."""

        def __init__(self) -> None:
            self.go = threading.Event()

        def client(self, _: str) -> Any:
            return self

        def head_object(self, **_: str) -> Any:
            self.go.wait()
            return {"ETag": '"x"'}

        def get_object(self, **_: str) -> Any:
            raise AssertionError("it was told to stop")

    stuck = Stuck()
    cache = ModelCache(tmp_path / "models", stuck)
    cache.remove_unfinished()
    with pytest.raises(ModelDataError, match=r"longer than 0\.05 seconds"):
        lay_out(cache, from_url(), 0.05)
    stuck.go.set()
    assert list((tmp_path / "models").iterdir()) == []


def test_killed_download_leaves_no_model_directory(tmp_path: Path, s3: Any, emulator: Emulator) -> None:
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive(*((f"f{n}", os.urandom(200_000)) for n in range(50))))
    program = f"""
import asyncio, os, pathlib, signal, sys, time
import boto3
from endpoint.fleet.models.model_cache import ModelCache
from endpoint.fleet.models.model_download import ModelDownload
from endpoint.fleet.models.model_source import ModelSource
class Backend:
    def client(self, service):
        return boto3.client(service, endpoint_url="{emulator.url}", region_name="us-east-1",
                            aws_access_key_id="000000000000", aws_secret_access_key="x")
extract_member = ModelDownload._extract_member
def slowly(self, archive, member, directory):
    extract_member(self, archive, member, directory)
    if member.name == "f20":
        os.kill(os.getpid(), signal.SIGKILL)
ModelDownload._extract_member = slowly
async def main():
    cache = ModelCache(pathlib.Path({str(tmp_path / "models")!r}), Backend())
    cache.remove_unfinished()
    async with cache.hold(ModelSource.of({{"ModelDataUrl": "{URL}"}}), 60): pass
asyncio.run(main())
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    left = list((tmp_path / "models").iterdir())
    assert len(left) == 1 and left[0].name.startswith(".partial-")
    cache = ModelCache(tmp_path / "models", emulator)
    cache.remove_unfinished()
    assert list((tmp_path / "models").iterdir()) == []
    assert len(content(lay_out(cache, from_url()))) == 50
    asyncio.run(cache.keep_only([]))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/k/x",
        "https://s3.amazonaws.com/b/k/x",
        "https://s3.eu-west-1.amazonaws.com/b/k/x",
        "https://s3-eu-west-1.amazonaws.com/b/k/x",
        "https://b.s3.amazonaws.com/k/x",
        "https://b.s3.eu-west-1.amazonaws.com/k/x",
        "https://b.s3.eu-west-1.amazonaws.com/%6B/x",
    ],
)
def test_the_forms_of_a_location(uri: str) -> None:
    source = ModelSource.of({"ModelDataUrl": uri})
    assert source is not None and (source.bucket, source.key) == ("b", "k/x")


@pytest.mark.parametrize("host", ["example.com", "b.s3.example.com", "b.s3-accelerate.example.com"])
def test_other_hosts_are_not_s3(host: str) -> None:
    with pytest.raises(ModelDataError, match="not a location on S3"):
        ModelSource.of({"ModelDataUrl": f"https://{host}/b/k"})


@pytest.mark.parametrize("uri", ["s3://b/", "https://b.s3.amazonaws.com/"])
def test_prefix_may_be_whole_bucket(uri: str) -> None:
    part = {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
    source = ModelSource.of({"ModelDataSource": {"S3DataSource": part}})
    assert source is not None and (source.bucket, source.key) == ("b", "")
    with pytest.raises(ModelDataError, match="does not name an object"):
        ModelSource.of({"ModelDataSource": {"S3DataSource": part | {"S3DataType": "S3Object"}}})
