"""What the experiment `searchcv` is made of: LassoBench, real data with rivals, sparse features."""
