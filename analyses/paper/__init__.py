"""What the studies of the paper share: rules, protocols, scores, and the truth that they are held against."""
