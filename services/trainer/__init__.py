"""RVC training: a controller that takes ``rvc.train`` jobs, and the stages it runs in Ray."""
