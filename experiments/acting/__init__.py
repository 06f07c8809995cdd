"""Acting while learning."""
