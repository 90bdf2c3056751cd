"""Attribution graphs of models whose MLPs are replaced by transcoders."""
