"""The stylised debt model behind the ritual `debt_scenario`: calibration, model, policies."""
