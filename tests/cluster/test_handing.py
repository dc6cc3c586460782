"""How tasks are handed out, to a client made up here; what is said of a cluster that is amiss."""

from __future__ import annotations

import itertools
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import distributed
import pytest
from dask.utils import key_split
from distributed import CancelledError, KilledWorker
from distributed.comm import CommClosedError
from distributed.scheduler import WorkerState

from cnnfeat.cli.extract import _stopping
from cnnfeat.cluster import ClusterOptions, connection, worker
from cnnfeat.cluster import handing as handing_module
from cnnfeat.cluster.checking import check_versions, versions_that_count
from cnnfeat.cluster.connection import check_place, connected, workers_of
from cnnfeat.cluster.handing import Handing
from cnnfeat.errors import Interrupted, StorageError, UsageError


class Future:
    def __init__(self, key: str, result: object) -> None:
        self.key, self._result = key, result

    def add_done_callback(self, call) -> None:
        if self._result is not None:
            call(self)

    def result(self) -> object:
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


class Client:
    """Two workers; it keeps what is under way, and how much that was at most."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.begun: tuple[str, ...] = ()
        self.n_asked = 0
        self.span = SimpleNamespace(metadata={"collections": [{"type": "Future"}] * 500})

    @property
    def scheduler(self) -> Client:
        return self

    def sync(self, ask, **given):
        return ask(**given)

    def identity(self) -> dict[str, object]:
        return {"workers": {f"tcp://w:{number}": {"resources": {}} for number in range(2)}}

    def run_on_scheduler(self, function) -> None:
        spans = {
            "spans": SimpleNamespace(spans={"": self.span, "new": SimpleNamespace(metadata=None)})
        }
        function(dask_scheduler=SimpleNamespace(extensions=spans))
        self.n_asked += 1

    def call_stack(self) -> dict[str, dict[str, str]]:
        return {"tcp://w:0": dict.fromkeys(self.begun, "")}

    def cancel(self, futures: list[Future]) -> None:
        self.cancelled += [future.key for future in futures]


def handing(client: Client, submit) -> Handing:
    return Handing(client, submit, noun=lambda number: f"shard {number}")


def never() -> bool:
    return False


def test_few_tasks_are_under_way_at_a_time(monkeypatch):
    monkeypatch.setattr(handing_module, "_LOOK_S", 1e9)
    handed, taken = itertools.count(), itertools.count()
    ahead = []

    def submit(number: int, workers) -> Future:
        assert [worker.address for worker in workers] == ["tcp://w:0", "tcp://w:1"]
        next(handed)
        return Future(f"task-{number}", number * 2)

    for number, result in handing(Client(), submit).results(range(10_000), should_stop=never):
        assert result == number * 2
        next(taken)
        ahead.append(int(repr(handed)[6:-1]) - int(repr(taken)[6:-1]))
    assert len(ahead) == 10_000
    assert max(ahead) <= 4


def test_a_scheduler_forgets_many_tasks(monkeypatch):
    monkeypatch.setattr(handing_module, "_MOST_TASKS", 100)
    client = Client()
    for number in range(500):
        key_split(f"shard-{number}")
    hands = handing(client, lambda number, workers: Future(f"task-{number}", "done"))
    assert sum(1 for _ in hands.results(range(250), should_stop=never)) == 250
    assert client.n_asked == 2
    assert key_split.cache_info().currsize == 0
    assert client.span.metadata == {"collections": []}


def test_nothing_of_many_tasks_is_left_in_a_scheduler(cluster, monkeypatch):
    from distributed import Client as RealClient

    monkeypatch.setattr(handing_module, "_MOST_TASKS", 50)

    def n_known(dask_scheduler) -> int:
        spans = dask_scheduler.extensions["spans"].spans.values()
        told = sum(len(span.metadata["collections"]) for span in spans if span.metadata)
        return told + len(dask_scheduler.tasks)

    with RealClient(cluster) as client:
        hands = handing(client, lambda number, workers: client.submit(abs, number, pure=False))
        assert sum(1 for _ in hands.results(range(400), should_stop=never)) == 400
        assert client.run_on_scheduler(n_known) < 200


@pytest.mark.parametrize(
    ("task_s", "n_ahead"), [(60.0, 4), (1.0, 4), (0.125, 16), (2**-10, 128)], ids=str
)
def test_as_many_are_under_way_as_are_done_in_a_second(monkeypatch, task_s, n_ahead):
    """Two workers, by a clock of its own; each has up to 64 tasks."""
    clock, n_under_way, most = [0.0], [0], []

    def submit(number: int, workers) -> Future:
        n_under_way[0] += 1
        return Future(f"task-{number}", "done")

    monkeypatch.setattr(handing_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in handing(Client(), submit).results(range(12_000), should_stop=never):
        most.append(n_under_way[0])
        n_under_way[0] -= 1
        clock[0] += task_s / 2
    assert max(most) == n_ahead


def test_that_there_is_no_worker_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(handing_module, "_LOOK_S", 0)
    client = Client()
    client.identity = lambda: {"workers": {}}
    hands = handing(client, lambda number, workers: Future(f"task-{number}", "done"))
    assert len(list(hands.results(range(5), should_stop=never))) == 5
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the scheduler has no worker; waiting for one: dask worker starts it"]


def test_what_no_worker_has_begun_is_taken_back():
    client = Client()
    futures = {
        number: Future(f"task-{number}", "done" if number == 1 else None) for number in range(4)
    }
    stopped = []

    def stop() -> bool:
        if stopped:
            client.begun = ("task-3",)
            futures[3]._result = "done late"
            late.put(futures[3])
        return bool(stopped)

    hands = handing(client, lambda number, workers: futures[number])
    late = hands._done
    results = hands.results(range(100), should_stop=stop)
    assert next(results) == (1, "done")
    stopped.append(True)
    assert list(results) == [(3, "done late")]
    assert sorted(client.cancelled) == ["task-0", "task-2"]


def killed() -> KilledWorker:
    state = WorkerState(
        address="tcp://w:1", status="closed", pid=1, name="w", nthreads=1, memory_limit=0,
        local_directory="", nanny="", server_id="w",
    )  # fmt: skip
    return KilledWorker("task-3", state, 30)


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (ImportError("no cnnfeat"), "shard 3: a worker can't compute: no cnnfeat", ""),
        (
            killed(),
            "shard 3: 31 workers were lost while they computed it, the last tcp://w:1",
            "batch",
        ),
    ],
    ids=["import", "workers"],
)
def test_what_ends_a_run_is_said(error, words, hint):
    hands = handing(Client(), lambda number, workers: Future(f"task-{number}", error))
    with pytest.raises(StorageError, match=words) as caught:
        list(hands.results([3], should_stop=never))
    assert hint in caught.value.hint
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "where", ["", "here", "local:", "local:0", "local:x", "http://a:1", "tcp://"]
)
def test_a_place_that_is_none_is_refused(where):
    with pytest.raises(UsageError, match=f"--dask {where}: allowed are local, local:N with N"):
        ClusterOptions(where)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"shards": 0}, "--shards must be at least 1, not 0"),
        ({"shard_rows": -1}, "--shard-rows must be at least 1, not -1"),
        ({"shards": 1, "shard_rows": 1}, "--shards and --shard-rows say the same"),
    ],
)
def test_numbers_of_shards_that_cant_be_are_refused(numbers, words):
    with pytest.raises(UsageError, match=words):
        ClusterOptions("local", **numbers)


@pytest.mark.parametrize(
    ("given", "n_shards"),
    [({"shards": 20}, 20), ({"shard_rows": 1000}, 70), ({"shard_rows": 1}, 118), ({}, 2)],
)
def test_shards_are_as_many_as_their_rows_need(given, n_shards):
    options = ClusterOptions("local", **given)
    assert options.n_shards({"train": 60_000, "test": 10_000}, batch_size=512) == n_shards


def test_no_scheduler_is_said_with_its_address(monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE_S", 0.3)
    with (
        pytest.raises(
            StorageError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1: "
        ) as caught,
        connected("tcp://127.0.0.1:1"),
    ):
        pass
    assert caught.value.hint == "dask scheduler starts one, and says its address"


def test_tls_without_certificates_is_said_with_the_settings_that_name_them():
    with (
        pytest.raises(
            UsageError, match=r"isn't set up to connect to tls://127\.0\.0\.1:1"
        ) as caught,
        connected("tls://127.0.0.1:1"),
    ):
        pass
    assert "DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in caught.value.hint


@pytest.mark.parametrize(
    "where", ["tcp://:", "tcp://host", "tcp://host:x", "tcp://host:0", "tcp://host:65536"]
)
def test_an_address_has_a_host_and_a_port(where):
    with pytest.raises(UsageError, match=rf"--dask {where}: allowed are .* tcp://host:8786"):
        check_place(where)


def test_no_secret_of_an_address_is_repeated():
    with pytest.raises(UsageError, match=r"--dask tcp://host:8786: allowed are"):
        check_place("tcp://me:secret@host:8786")


@pytest.mark.parametrize("where", ["tcp://host:8786", "tls://[::1]:8786", "wss://a.b:443/x"])
def test_addresses_that_can_be(where):
    check_place(where)


@pytest.mark.parametrize("error", [CancelledError("x"), CommClosedError("y"), TimeoutError("z")])
def test_a_scheduler_that_is_lost_is_said(error):
    with (
        pytest.raises(StorageError, match=r"the Dask scheduler of tcp://a:1 is gone") as caught,
        connection._losses_told("tcp://a:1"),
    ):
        raise error
    assert "the same command goes on" in caught.value.hint


def test_processes_that_cant_be_started_are_said(monkeypatch):
    def fail(**given):
        raise RuntimeError("Nanny failed to start worker process")

    monkeypatch.setattr(distributed, "LocalCluster", fail)
    with (
        pytest.raises(
            StorageError, match=r"^3 processes of this machine .*: Nanny failed"
        ) as caught,
        connected("local:3"),
    ):
        pass
    assert caught.value.hint == "the same command tries again"


def test_processes_that_take_long_to_end_cost_no_run(monkeypatch, caplog):
    """On a busy machine they don't end in the seconds that Dask gives them."""

    class Slow:
        def close(self) -> None:
            raise TimeoutError

    monkeypatch.setattr(distributed, "LocalCluster", lambda **given: Slow())
    caplog.set_level("INFO")
    with connection._local_cluster(2) as cluster:
        assert isinstance(cluster, Slow)
    assert "took long to end" in caplog.text


class Versioned(Client):
    def __init__(self, found: dict[str, object]) -> None:
        self._found = found

    def run(self, function, package: str, *, on_error: str) -> dict[str, object]:
        assert function is version
        return {
            "tcp://w:0": version(package),
            "tcp://w:1": self._found.get(package, version(package)),
        }


@pytest.mark.parametrize(
    ("package", "found", "words"),
    [
        ("cnnfeat", "0.0.1", r"worker tcp://w:1 has cnnfeat 0\.0\.1, and this process "),
        ("tensorflow", PackageNotFoundError("x"), "worker tcp://w:1 has tensorflow none, and this"),
        ("openvino", "1.0", r"has openvino 1\.0, and this"),
    ],
)
def test_a_worker_of_another_version_is_named(package, found, words):
    with pytest.raises(StorageError, match=words) as caught:
        check_versions(Versioned({package: found}), versions_that_count("openvino"))
    assert "pip freeze" in caught.value.hint
    check_versions(Versioned({}), versions_that_count("tensorflow"))


@pytest.mark.parametrize("task", [worker.look, lambda work: worker.compute(work, 1, {})])
def test_a_worker_that_comes_late_with_other_versions_computes_nothing(
    task, monkeypatch, task_in, tmp_path
):
    monkeypatch.setattr(worker, "_address", lambda: "tcp://w:9")
    work = task_in(tmp_path, numpy="0.1")
    failure = task(work).failure
    assert failure.kind is StorageError
    said = f"worker tcp://w:9 has numpy {version('numpy')}, and the driver 0.1"
    assert failure.message == said
    assert "pip freeze" in failure.hint
    assert worker.versions_here(["no-such-package"]) == {"no-such-package": "none"}


@pytest.mark.parametrize("task", [worker.look, lambda work: worker.compute(work, 1, {})])
def test_what_the_system_refuses_a_worker_is_sent_back_in_words(task, monkeypatch):
    def refuse(*_args, **_given):
        raise PermissionError(13, "Permission denied", "/scratch")

    monkeypatch.setattr(worker, "_open", refuse)
    failure = task(None).failure
    assert failure == worker.Failure(StorageError, "/scratch: Permission denied", "")


def test_ctrl_c_names_a_command_that_there_is(monkeypatch):
    words = ["cnnfeat", "extract", "--dask", "local", "--layer", "fc1"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(Interrupted) as told, _stopping(goes_on_by=()):
        raise Interrupted("stopped", hint="the same command goes on")
    assert told.value.hint == "cnnfeat extract --dask local --layer fc1 goes on from there"


def test_workers_that_were_started_with_a_gpu_are_asked_for_it():
    class WithGpu(Client):
        def identity(self):
            return {"workers": {"a": {"resources": {"GPU": 1}}, "b": {"resources": {}}}}

    assert [worker.resources for worker in workers_of(WithGpu())] == [{"GPU": 1}, None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shards", 3], "--shards and --shard-rows go with --dask"),
        (["--dask", "local", "--shard", "1/2"], "--dask has all shards computed, and --shard one"),
        (["--dask", "local", "--overwrite"], "--dask keeps the shards that are there"),
        (["--dask", "nowhere"], "--dask nowhere: allowed are local, local:N"),
    ],
)
def test_options_that_dont_go_together_are_refused(cnnfeat, tmp_path, words, message):
    code, _, err = cnnfeat("extract", "--layer", "x", *words, "-o", tmp_path / "set")
    assert code == 2
    assert message in err
