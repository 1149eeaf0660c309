"""A stop from outside, what a killed process leaves, how far a task has come, and what names may be."""
from .mutation import Mutation

STOPPING, PROGRESS, PARENT = "trainers/stopping.py", "trainers/process/progress.py", "trainers/process/parent.py"
LOOP, TRAINING, WATCHING = "trainers/training/loop.py", "trainers/training/run.py", "trainers/training/monitor.py"
RUNS, PART, ERRORS = "trainers/run_folder.py", "trainers/spec/part.py", "trainers/errors.py"
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
    Mutation("names are counted in signs, not in bytes", PART,
             "if len(name.encode()) > LONGEST_NAME:",
             "if len(name) > LONGEST_NAME:", "unit/test_spec.py::test_hostile_names"),
    Mutation("devices with a suffix are taken", PART,
             'name.split(".")[0].rstrip(" ").lower() in RESERVED_NAMES',
             "name.lower() in RESERVED_NAMES", "unit/test_spec.py::test_hostile_names"),
    Mutation("names keep their form of Unicode", PART,
             '    name = unicodedata.normalize("NFC", name)\n', "", "unit/test_spec.py::test_a_name_has_one_form"),
    Mutation("marks of scripts are refused", PART,
             'if unicodedata.category(each) not in ("Mn", "Mc"))',
             "if True)", "unit/test_spec.py::test_names_of_all_scripts_fit_on_a_disk_with_all_that_is_put_behind_them"),
    Mutation("a name may end with a dot", PART,
             'name.endswith((" ", "."))', 'name.endswith((" ",))', "unit/test_spec.py::test_hostile_names"),
]
