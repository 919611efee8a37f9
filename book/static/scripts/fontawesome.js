/* Takes the place of the theme's Font Awesome script (0.5 MB compressed): icons.css draws what the
   pages use. */
