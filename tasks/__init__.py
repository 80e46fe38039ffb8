"""What each stage does: one room a stage, behind the contract of `tasks.stage.node`."""
