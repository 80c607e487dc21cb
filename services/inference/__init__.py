"""Speech and conversion: pools of resident engine actors on Ray, and who may use them when."""
