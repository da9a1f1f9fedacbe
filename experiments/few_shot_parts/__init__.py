"""What the experiment `few_shot` is made of: episodes, the encoder, and a file for each method."""
