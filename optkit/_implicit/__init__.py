"""Use 2 of curvature, differentiate: decorators around any solver function."""
