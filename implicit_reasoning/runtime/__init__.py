"""What every long or parallel computation needs, whatever it computes."""
