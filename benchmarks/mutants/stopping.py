"""A stop from outside, what a killed process leaves, how far a task has come, and what names may be."""
from .mutation import Mutation

STOPPING, PROGRESS, PARENT = "trainers/stopping.py", "trainers/progress.py", "trainers/run.py"
LOOP, TRAINING, WATCHING = "trainers/loop.py", "trainers/training.py", "trainers/watching.py"
RUNS, PART, ERRORS = "trainers/runs.py", "trainers/spec/part.py", "trainers/errors.py"
CANCEL, STOPS, NAMES = "unit/test_cancel.py", "unit/test_stopping.py", "unit/test_spec.py"

MUTATIONS = [
    Mutation("a region that may not be broken off is", STOPPING,
             "    return _Region(False)\n", "    return _Region(True)\n",
             "unit/test_stopping.py::test_it_waits_outside_and_in_unbroken_regions_and_is_not_lost"),
    Mutation("a region does not give back the one around it", STOPPING,
             "            _region = self.outer\n", "            pass\n", "unit/test_stopping.py::test_a_stop_breaks_off"),
    Mutation("other threads change the region", STOPPING,
             "        self.outer = _region\n        if threading.current_thread() is threading.main_thread():\n",
             "        self.outer = _region\n        if True:\n",
             "unit/test_stopping.py::test_other_threads_are_never_broken_off"),
    Mutation("what was swallowed is not broken off again", STOPPING,
             "if region.broken_at and now - region.broken_at < AGAIN:",
             "if region.broken_at:", "unit/test_stopping.py::test_a_stop_breaks_off"),
    Mutation("the end of standard input is no request", STOPPING,
             "                break\n        self._request()\n",
             "                self._request()\n", "unit/test_worker.py::test_a_worker_whose_parent_dies_saves_and_ends"),
]
