"""What a user may say about jobs: submitit's parameters by name. Most of it needs no cluster, but Slurm's programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cluster import missing

from pynas.errors import PynasError
from pynas.runtime import slurm_jobs
from pynas.runtime.slurm import SlurmExecutor
from pynas.runtime.submit import auto_executor, check_parameters, outside_job


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"partition": "gpu"},
            r"executor\.slurm\.partition: unknown parameter; did you mean slurm_partition\? Allowed: ",
        ),
        ({"timeout_mins": 3}, r"executor\.slurm\.timeout_mins: .*did you mean timeout_min\? Allowed: .*mem_gb"),
        ({"slurm_partitoin": "gpu"}, "did you mean slurm_partition"),
        ({"zzz": 1}, r"executor\.slurm\.zzz: unknown parameter\. Allowed: "),
        ({"timeout_min": "an hour"}, "timeout_min: 'an hour' came; input should be a valid integer"),
        ({"cpus_per_task": 1.5}, "cpus_per_task: 1.5 came; input should be a valid integer"),
        ({"slurm_setup": "module load cuda"}, "slurm_setup: 'module load cuda' came; input should be a valid list"),
        ({"slurm_additional_parameters": ["x"]}, "slurm_additional_parameters: .* valid dictionary"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(parameters, message):
    with pytest.raises(PynasError, match=message) as error:
        check_parameters(parameters)
    assert "\n" not in str(error.value)


def test_right_parameters_pass():
    check_parameters({"mem_gb": 4, "timeout_min": 60, "slurm_account": None, "slurm_exclusive": True, "name": "mine"})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nodes": 2}, r"executor\.slurm\.nodes: cannot be set, a candidate is one task on one node"),
        ({"slurm_array_parallelism": 9}, "cannot be set, executor.workers tells how many"),
        ({"slurm_additional_parameters": {"array": "0-3"}}, "slurm_additional_parameters.array: cannot be set"),
    ],
)
def test_what_pynas_sets_itself_cannot_be_set(slurm, tmp_path, parameters, message):
    with pytest.raises(PynasError, match=message):
        SlurmExecutor(tmp_path / "tasks", 1, parameters)


@pytest.mark.parametrize("values", [{"workers": 0}, {"threads": 0}, {"retries": -1}])
def test_numbers_too_small(tmp_path, values):
    with pytest.raises(PynasError, match="is too few, at least"):
        SlurmExecutor(tmp_path / "tasks", **values)


def test_without_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PynasError, match="there is no sbatch on PATH here"):
        SlurmExecutor(tmp_path / "tasks", 1)


@pytest.mark.skipif(bool(missing()), reason="no Slurm here")
def test_parameters_reach_the_batch_script(slurm, tmp_path):
    def script(parameters: dict[str, Any], **defaults: Any) -> str:
        executor = auto_executor(tmp_path, parameters, **defaults)
        return executor._executor._make_submission_file_text("", "")

    text = script({"slurm_setup": ["module load cuda"], "cpus_per_task": 2}, slurm_setup=["a"], cpus_per_task=1)
    lines = text.splitlines()
    assert "#SBATCH --cpus-per-task=2" in lines
    assert lines.index("a") < lines.index("module load cuda")
    assert "--time" not in text  # the partition's limit, and not submitit's five minutes
    assert "#SBATCH --time=7" in script({"timeout_min": 7})
    assert "#SBATCH --time=7" in script({}, timeout_min=7)
    assert str(Path(__file__).parents[2]) in text


def test_what_sbatch_says_against_it_is_one_line(slurm, tmp_path):
    executor = SlurmExecutor(tmp_path / "tasks", 1, {"slurm_partition": "nowhere"})
    executor.submit("a", "contract_tasks:double", {"value": 1})
    with pytest.raises(PynasError, match=r"executor\.slurm: sbatch refused the jobs: .*invalid partition") as error:
        list(executor.outcomes())
    assert "\n" not in str(error.value)
    executor.close(cancel=True)
    assert list((tmp_path / "slurm" / "arrays").iterdir()) == []


def test_a_job_within_a_job_inherits_nothing_of_it(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "PMI_RANK", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "7")
    with outside_job():
        left = {name for name in os.environ if name.startswith(("SLURM", "PMI", "SBATCH"))}
    assert left == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["SLURM_CPUS_PER_TASK"] == "7"


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[3-5,8%2]", ["12_3", "12_4", "12_5", "12_8"]),
        ("12_[0-6:3]", ["12_0", "12_3", "12_6"]),
    ],
)
def test_ids_that_stand_for_many(name, jobs):
    assert slurm_jobs.expand(name) == jobs


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        ("0:9", "killed by signal 9 (SIGKILL, perhaps out of memory)"),
        ("139:0", "killed by signal 11 (SIGSEGV)"),
        ("3:0", "exited with status 3"),
        ("", ""),
    ],
)
def test_exit_codes_in_words(exit_code, words):
    assert slurm_jobs.ending(exit_code) == words


def test_states_of_many_jobs_in_one_answer(slurm):
    script = "case $SLURM_ARRAY_TASK_ID in 0) exit 3;; 1) kill -9 $$;; 2) sleep 60;; esac"
    options = ["--parsable", "-o", "/dev/null", "-J", "pynas-states", "--array=0-9%3", f"--wrap={script}"]
    array = slurm.client("sbatch", "--hold", *options).strip()
    single = slurm.client("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "true").strip()
    assert slurm_jobs.find("pynas-states") == [array]
    assert slurm_jobs.find("nobody") == []
    ids = [*(f"{array}_{index}" for index in range(10)), single, "999998", "999999_1"]

    def state(index: int) -> str:
        found = slurm_jobs.states(ids)
        assert found is not None
        return found[f"{array}_{index}"].state

    assert {state(index) for index in range(10)} == {"PENDING"}
    assert slurm_jobs.release(array)
    slurm.wait_for(lambda: [state(index) for index in range(4)] == ["FAILED", "FAILED", "RUNNING", "COMPLETED"], "")
    assert slurm_jobs.set_limit(array, 5)
    assert "ArrayTaskThrottle=5" in slurm.client("scontrol", "show", "job", f"{array}_2")
    slurm.wait_for(lambda: state(9) == "COMPLETED", "the array has ended")
    found = slurm_jobs.query(ids)
    assert found is not None
    assert found.keys() == {*ids} - {"999998", "999999_1"}
    assert [found[f"{array}_{index}"].exit_code for index in range(4)] == ["3:0", "0:9", "", "0:0"]
    assert found[f"{array}_0"].node in ("n1", "n2")
    assert found[single].ended
    assert slurm_jobs.query(["999999"]) == {}
    assert not slurm_jobs.has_accounting()
    assert slurm_jobs.largest_array() == 2001
    assert slurm_jobs.cancel([array, "999999"])
    assert slurm_jobs.wait_until_gone([f"{array}_2"], 10)


def test_a_silent_controller_is_not_an_answer(slurm, monkeypatch, tmp_path):
    configuration = tmp_path / "slurm.conf"
    text = slurm.configuration.read_text().splitlines()
    port = "SlurmctldPort=1"  # where nobody listens
    configuration.write_text("\n".join(port if line.startswith("SlurmctldPort") else line for line in text))
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setattr(slurm_jobs, "PATIENCE", 2.0)
    assert slurm_jobs.states(["1_0"]) is None
    assert slurm_jobs.query(["1"]) is None
    assert slurm_jobs.find("any") is None
    assert not slurm_jobs.cancel(["1"])
