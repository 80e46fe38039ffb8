"""What SFT and DPO share: choosing records by hash, and turning them into tokens and targets."""
