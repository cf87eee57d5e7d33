"""What a build chooses by itself: the sampler, by rule or by measurement, its variances, the precision."""
