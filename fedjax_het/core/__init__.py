"""Ground floor: the contract and the engine; imports nothing of ours."""
