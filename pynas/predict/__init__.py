"""The accuracy predictor: fitted with torch, scored in the compiled core."""
