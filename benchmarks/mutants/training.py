"""The loop, the story of a run, and what a checkpoint brings back."""
from .mutation import Mutation

LOOP, TRAINING, RUNS, BATCHES = "trainers/loop.py", "trainers/training.py", "trainers/runs.py", "trainers/data/batches.py"
EVERY_STEP = "unit/test_loop.py::test_every_step_is_that_of_a_loop_in_plain_torch"
STEP_LENGTH = "unit/test_loop.py::test_a_step_is_as_long_as_rate_and_clipping_say"
CLASS_IMAGES = "unit/test_loop.py::test_class_images_come_as_often_as_their_ratio_says"
MEAN = "unit/test_resume.py::test_the_mean_of_the_weights_goes_on"
SCALER = "unit/test_resume.py::test_the_scaler_of_fp16_goes_on"
NEWEST = "unit/test_resume.py::test_the_newest_checkpoint_that_can_be_read_is_taken"

MUTATIONS = [
    # ---- the seven that no test noticed --------------------------------------------------------------------------------
    Mutation("the schedule never steps", LOOP, "        schedule.step()\n", "", STEP_LENGTH),
    Mutation("gradient clipping is ignored", LOOP, 'maximum or float("inf")', 'float("inf")', STEP_LENGTH),
    Mutation("the rate of class images is ignored", TRAINING, "self.data.prior_rate,\n        )", "1.0,\n        )", CLASS_IMAGES),
    Mutation("resume drops the EMA state", TRAINING, 'self.mean.load_state_dict(state["mean"])', "pass", MEAN),
    Mutation("resume drops the state of fp16's scaler", TRAINING,
             'self.accelerator.scaler.load_state_dict(state["scaler"])', "pass", SCALER),
    Mutation("after a damaged newest checkpoint the oldest is taken", RUNS, "for step in reversed(self.checkpoints()):",
             "for step in [*self.checkpoints()[-1:], *self.checkpoints()]:", NEWEST),
    Mutation("the weight of an image in the loss is ignored", "trainers/objectives.py",
             "weight = noised.weight if weights is None else noised.weight * weights", "weight = noised.weight", EVERY_STEP),
    # ---- the loop ------------------------------------------------------------------------------------------------------
    Mutation("class images count at the start of the run only", TRAINING, "spec.prior.weight if spec.prior else 0.0", "1.0",
             CLASS_IMAGES),
    Mutation("a step's shares are averaged twice", LOOP, "loss = share.weight * objective.loss(",
             "loss = share.weight / len(shares) * objective.loss(", EVERY_STEP),
]
